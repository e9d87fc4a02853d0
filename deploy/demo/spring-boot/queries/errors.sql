-- Failed requests, with the exception that caused each, whichever service threw
-- it.
SELECT shop.name AS request,
       shop.response_code AS answer,
       count() AS requests,
       cause.service_name AS service,
       cause.name AS span,
       splitByChar('.', cause.exception['exception.type'])[-1] AS exception,
       any(substringUTF8(splitByChar('\n', cause.exception['exception.message'])[1], 1, 60)) AS message
FROM (SELECT trace_id, name, response_code FROM metaflow.spans
      WHERE kind = 'server' AND parent_span_id = '' AND toUInt16OrZero(response_code) >= 400) AS shop
LEFT JOIN (SELECT trace_id, service_name, name, arrayFirst(e -> e.name = 'exception', events).attributes AS exception
           FROM metaflow.spans WHERE status_code = 'error' AND has(events.name, 'exception')) AS cause
       ON cause.trace_id = shop.trace_id
GROUP BY request, answer, service, span, exception
ORDER BY requests DESC, request
