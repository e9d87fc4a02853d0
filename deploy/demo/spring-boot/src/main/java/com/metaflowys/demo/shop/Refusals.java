package com.metaflowys.demo.shop;

import org.springframework.http.HttpStatus;
import org.springframework.http.ProblemDetail;
import org.springframework.web.bind.annotation.ExceptionHandler;
import org.springframework.web.bind.annotation.RestControllerAdvice;
import org.springframework.web.client.HttpClientErrorException;
import org.springframework.web.client.RestClientException;

/** What a service answers when one that it asked refused or failed. */
@RestControllerAdvice
class Refusals {
    @ExceptionHandler
    ProblemDetail refused(HttpClientErrorException answer) {
        return ProblemDetail.forStatusAndDetail(answer.getStatusCode(), "another service refused");
    }

    @ExceptionHandler
    ProblemDetail failed(RestClientException failure) {
        return ProblemDetail.forStatusAndDetail(HttpStatus.BAD_GATEWAY, "another service failed");
    }
}
