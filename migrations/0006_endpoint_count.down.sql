{{dropColumn "services" "endpoint_count"}};
