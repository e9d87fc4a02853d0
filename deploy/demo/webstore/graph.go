package webstore

import "slices"

// The names of the services, as service.name has them.
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

// The protocols of calls.
const (
	httpProtocol  = "http"
	grpcProtocol  = "grpc"
	redisProtocol = "redis"
)

// Edge says that one service calls another.
type Edge struct {
	From, To string
	// Protocol is http, grpc or redis.
	Protocol string
}

// graph is the call graph of the WebStore. The visitors from the Internet are
// those that the load generator stands for.
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

// Graph returns who calls whom, and nobody else calls anybody.
func Graph() []Edge { return slices.Clone(graph) }
