package webstore

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// userCookie is the cookie that identifies the visitor.
const userCookie = "shop_user"

// featured is the number of products with prices on the home page.
const featured = 3

// page is the frontend's response; each route fills its part.
type page struct {
	Products        []product `json:"products,omitempty"`
	Prices          []money   `json:"prices,omitempty"`
	Currencies      []string  `json:"currencies,omitempty"`
	Ad              *ad       `json:"ad,omitempty"`
	Recommendations []string  `json:"recommendations,omitempty"`
	Cart            *cart     `json:"cart,omitempty"`
	Shipping        *money    `json:"shipping,omitempty"`
	Order           *order    `json:"order,omitempty"`
}

// pages serves the shop's web pages.
func pages(s *service) (api, error) {
	return api{routes: routes{
		"GET /{$}":            s.home,
		"GET /product/{id}":   s.productPage,
		"GET /cart":           s.cartPage,
		"POST /cart":          s.addToCart,
		"POST /cart/checkout": s.checkout,
	}}, nil
}

// visitor returns the id of the visitor and adds it to the span.
func visitor(r *http.Request) (string, error) {
	c, err := r.Cookie(userCookie)
	if err != nil {
		return "", status.Errorf(codes.InvalidArgument, "read cookie %s: %v", userCookie, err)
	}
	trace.SpanFromContext(r.Context()).SetAttributes(attribute.String("app.user.id", c.Value))
	return c.Value, nil
}

// parallel runs the parts of a page concurrently. One that fails does not
// cancel the others, whose calls are already in progress.
func parallel(parts ...func() error) error {
	var g errgroup.Group
	for _, part := range parts {
		g.Go(part)
	}
	return g.Wait()
}

// into returns a part of a page that calls a method and stores the answer.
func into[Resp any](ctx context.Context, s *service, to, method string, req any, answer **Resp) func() error {
	return func() (err error) {
		*answer, err = call[Resp](ctx, s, to, method, req)
		return err
	}
}

func (s *service) home(r *http.Request) (any, error) {
	ctx := r.Context()
	user, err := visitor(r)
	if err != nil {
		return nil, err
	}
	var (
		list     *productList
		accepted *currencyList
		p        page
	)
	err = parallel(
		into(ctx, s, productCatalogService, "ListProducts", nothing{}, &list),
		into(ctx, s, currencyService, "GetSupportedCurrencies", nothing{}, &accepted),
		into(ctx, s, cartService, "GetCart", cartOf{user}, &p.Cart),
		into(ctx, s, adService, "GetAds", adRequest{}, &p.Ad),
	)
	if err != nil {
		return nil, err
	}
	p.Products, p.Currencies = list.Products, accepted.Codes
	for _, shown := range list.Products[:min(featured, len(list.Products))] {
		price, err := s.convert(ctx, shown.Price, currencyOf(r))
		if err != nil {
			return nil, err
		}
		p.Prices = append(p.Prices, price)
	}
	return p, nil
}

func (s *service) productPage(r *http.Request) (any, error) {
	ctx := r.Context()
	user, err := visitor(r)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("app.product.id", id))
	shown, err := call[product](ctx, s, productCatalogService, "GetProduct", productID{id})
	if err != nil {
		return nil, err
	}
	p := page{Products: []product{*shown}}
	var (
		price *money
		also  *recommendationList
	)
	err = parallel(
		into(ctx, s, currencyService, "Convert", conversion{shown.Price, currencyOf(r)}, &price),
		into(ctx, s, cartService, "GetCart", cartOf{user}, &p.Cart),
		into(ctx, s, recommendationService, "ListRecommendations", recommendationRequest{user, []string{id}}, &also),
		into(ctx, s, adService, "GetAds", adRequest{shown.Category}, &p.Ad),
	)
	if err != nil {
		return nil, err
	}
	p.Prices, p.Recommendations = []money{*price}, also.ProductIDs
	return p, nil
}

func (s *service) addToCart(r *http.Request) (any, error) {
	ctx := r.Context()
	user, err := visitor(r)
	if err != nil {
		return nil, err
	}
	var item cartItem
	if err := readBody(r, &item); err != nil {
		return nil, err
	}
	trace.SpanFromContext(ctx).SetAttributes(
		attribute.String("app.product.id", item.ProductID),
		attribute.Int64("app.product.quantity", item.Quantity),
	)
	if _, err := call[product](ctx, s, productCatalogService, "GetProduct", productID{item.ProductID}); err != nil {
		return nil, err
	}
	return call[nothing](ctx, s, cartService, "AddItem", addToCart{user, item})
}

func (s *service) cartPage(r *http.Request) (any, error) {
	ctx := r.Context()
	user, err := visitor(r)
	if err != nil {
		return nil, err
	}
	c, err := call[cart](ctx, s, cartService, "GetCart", cartOf{user})
	if err != nil {
		return nil, err
	}
	trace.SpanFromContext(ctx).SetAttributes(attribute.Int64("app.cart.items.count", c.count()))
	p := page{Cart: c}
	var (
		also  *recommendationList
		quote *money
	)
	err = parallel(
		into(ctx, s, recommendationService, "ListRecommendations", recommendationRequest{user, c.products()}, &also),
		into(ctx, s, shippingService, "GetQuote", parcel{c.Items}, &quote),
		func() error { return s.priceItems(ctx, c, currencyOf(r), &p) },
	)
	if err != nil {
		return nil, err
	}
	p.Recommendations = also.ProductIDs
	cost, err := s.convert(ctx, *quote, currencyOf(r))
	p.Shipping = &cost
	return p, err
}

func (s *service) priceItems(ctx context.Context, c *cart, currency string, p *page) error {
	for _, it := range c.Items {
		shown, err := call[product](ctx, s, productCatalogService, "GetProduct", productID{it.ProductID})
		if err != nil {
			return err
		}
		price, err := s.convert(ctx, shown.Price, currency)
		if err != nil {
			return err
		}
		p.Products, p.Prices = append(p.Products, *shown), append(p.Prices, price)
	}
	return nil
}

func (c *cart) products() (ids []string) {
	for _, it := range c.Items {
		ids = append(ids, it.ProductID)
	}
	return ids
}

func (s *service) checkout(r *http.Request) (any, error) {
	ctx := r.Context()
	user, err := visitor(r)
	if err != nil {
		return nil, err
	}
	req := orderRequest{UserID: user, Currency: currencyOf(r)}
	if err := readBody(r, &req.Card); err != nil {
		return nil, err
	}
	placed, err := call[order](ctx, s, checkoutService, "PlaceOrder", req)
	if err != nil {
		return nil, err
	}
	trace.SpanFromContext(ctx).SetAttributes(
		attribute.String("app.order.id", placed.OrderID),
		attribute.Float64("app.order.amount", float64(placed.Total.Cents)/100),
	)
	also, err := call[recommendationList](ctx, s, recommendationService, "ListRecommendations", recommendationRequest{user, (&cart{placed.Items}).products()})
	if err != nil {
		return nil, err
	}
	return page{Order: placed, Recommendations: also.ProductIDs}, nil
}

// currencyOf returns the currency that the visitor pays with.
func currencyOf(r *http.Request) string {
	if code := r.URL.Query().Get("currency"); code != "" {
		return code
	}
	return shopCurrency
}
