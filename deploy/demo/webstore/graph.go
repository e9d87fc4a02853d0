package webstore

import "slices"

// Names of the services, as in service.name.
const (
	adService             = "adservice"
	cartService           = "cartservice"
	checkoutService       = "checkoutservice"
	currencyService       = "currencyservice"
	emailService          = "emailservice"
	frontend              = "frontend"
	loadGenerator         = "loadgenerator"
	paymentService        = "paymentservice"
	productCatalogService = "productcatalogservice"
	recommendationService = "recommendationservice"
	shippingService       = "shippingservice"

	// cache speaks the Redis protocol and records no spans.
	cache = "redis"
)

// Protocols of calls.
const (
	httpProtocol  = "http"
	grpcProtocol  = "grpc"
	redisProtocol = "redis"
)

// Edge is a call from one service to another.
type Edge struct {
	From, To string
	// Protocol is http, grpc or redis.
	Protocol string
}

// graph is the call graph of the WebStore. The load generator stands for
// visitors from the Internet.
var graph = []Edge{
	{loadGenerator, frontend, httpProtocol},

	{frontend, adService, grpcProtocol},
	{frontend, cartService, grpcProtocol},
	{frontend, productCatalogService, grpcProtocol},
	{frontend, checkoutService, grpcProtocol},
	{frontend, currencyService, grpcProtocol},
	{frontend, recommendationService, grpcProtocol},
	{frontend, shippingService, grpcProtocol},

	{recommendationService, productCatalogService, grpcProtocol},
	{cartService, cache, redisProtocol},

	{checkoutService, cartService, grpcProtocol},
	{checkoutService, productCatalogService, grpcProtocol},
	{checkoutService, currencyService, grpcProtocol},
	{checkoutService, emailService, httpProtocol},
	{checkoutService, paymentService, grpcProtocol},
	{checkoutService, shippingService, grpcProtocol},
}

// Graph returns the complete call graph.
func Graph() []Edge { return slices.Clone(graph) }
