package otlptest

import "time"

// protocol is how one service calls another.
type protocol int

const (
	grpcCall protocol = iota
	httpCall
	redisCall
)

// operation is what a service does when called.
type operation struct {
	service  string
	protocol protocol
	name     string        // gRPC: package.Service/Method; HTTP: the route; Redis: the command
	method   string        // HTTP
	self     time.Duration // typical time of its own
	internal string        // name of an internal span, if it makes one
	calls    []call
}

// call is a call of another operation, between min and max times.
type call struct {
	to       *operation
	min, max int
}

// page is what a visitor asks the frontend for.
type page struct {
	weight int
	op     *operation
	load   bool // asked for by the load generator
}

func rpc(service, name string, self time.Duration, internal string, calls ...call) *operation {
	return &operation{service: service, protocol: grpcCall, name: name, self: self, internal: internal, calls: calls}
}

func web(service, method, route string, self time.Duration, internal string, calls ...call) *operation {
	return &operation{service: service, protocol: httpCall, name: route, method: method, self: self, internal: internal, calls: calls}
}

func redis(command string) *operation {
	return &operation{protocol: redisCall, name: command, self: 300 * time.Microsecond}
}

// The calls of the demo's diagram.
var (
	hgetall = redis("HGETALL")
	hset    = redis("HSET")
	del     = redis("DEL")

	getAds         = rpc("adservice", "hipstershop.AdService/GetAds", 2*time.Millisecond, "getAdsByCategory")
	getProduct     = rpc("productcatalogservice", "hipstershop.ProductCatalogService/GetProduct", 400*time.Microsecond, "")
	listProducts   = rpc("productcatalogservice", "hipstershop.ProductCatalogService/ListProducts", 900*time.Microsecond, "")
	currencies     = rpc("currencyservice", "hipstershop.CurrencyService/GetSupportedCurrencies", 500*time.Microsecond, "")
	convert        = rpc("currencyservice", "hipstershop.CurrencyService/Convert", 600*time.Microsecond, "")
	getCart        = rpc("cartservice", "hipstershop.CartService/GetCart", 700*time.Microsecond, "", call{hgetall, 1, 1})
	addItem        = rpc("cartservice", "hipstershop.CartService/AddItem", 800*time.Microsecond, "", call{hgetall, 1, 1}, call{hset, 1, 1})
	emptyCart      = rpc("cartservice", "hipstershop.CartService/EmptyCart", 600*time.Microsecond, "", call{del, 1, 1})
	quote          = rpc("shippingservice", "hipstershop.ShippingService/GetQuote", 900*time.Microsecond, "calculate-quote")
	shipOrder      = rpc("shippingservice", "hipstershop.ShippingService/ShipOrder", 1500*time.Microsecond, "create-tracking-id")
	charge         = rpc("paymentservice", "hipstershop.PaymentService/Charge", 4*time.Millisecond, "validate-card")
	confirmation   = web("emailservice", "POST", "/send_order_confirmation", 6*time.Millisecond, "render-template")
	recommendation = rpc("recommendationservice", "hipstershop.RecommendationService/ListRecommendations", 3*time.Millisecond, "", call{listProducts, 1, 1})
	placeOrder     = rpc("checkoutservice", "hipstershop.CheckoutService/PlaceOrder", 3*time.Millisecond, "prepareOrderItemsAndShippingQuoteFromCart",
		call{getCart, 1, 1}, call{getProduct, 1, 3}, call{convert, 1, 3}, call{quote, 1, 1}, call{charge, 1, 1},
		call{shipOrder, 1, 1}, call{confirmation, 1, 1}, call{emptyCart, 1, 1})
)

// pages make traces of about 10 to 40 spans.
var pages = []page{
	{weight: 30, load: true, op: web("frontend", "GET", "/", 3*time.Millisecond, "render",
		call{currencies, 1, 1}, call{listProducts, 1, 1}, call{getCart, 1, 1}, call{convert, 2, 6}, call{getAds, 1, 1})},
	{weight: 40, load: true, op: web("frontend", "GET", "/product/{id}", 3*time.Millisecond, "render",
		call{getProduct, 1, 1}, call{currencies, 1, 1}, call{getCart, 1, 1}, call{convert, 1, 1}, call{recommendation, 1, 1}, call{getProduct, 1, 4}, call{getAds, 1, 1})},
	{weight: 15, load: true, op: web("frontend", "GET", "/cart", 3*time.Millisecond, "render",
		call{currencies, 1, 1}, call{getCart, 1, 1}, call{recommendation, 1, 1}, call{getProduct, 0, 3}, call{quote, 1, 1}, call{convert, 1, 3})},
	{weight: 15, load: false, op: web("frontend", "POST", "/cart", 2*time.Millisecond, "",
		call{getProduct, 1, 1}, call{addItem, 1, 1}, call{currencies, 1, 1})},
	{weight: 8, load: true, op: web("frontend", "POST", "/cart/checkout", 4*time.Millisecond, "render",
		call{placeOrder, 1, 1}, call{recommendation, 1, 1}, call{getProduct, 1, 3}, call{currencies, 1, 1})},
}
