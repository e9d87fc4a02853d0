package webstore

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type orderRequest struct {
	UserID   string     `json:"user_id"`
	Currency string     `json:"currency"`
	Card     creditCard `json:"card"`
}

type order struct {
	OrderID    string     `json:"order_id"`
	TrackingID string     `json:"tracking_id"`
	Items      []cartItem `json:"items"`
	Total      money      `json:"total"`
}

// letter is an order as sent to the email service.
type letter struct {
	order
	Attachment []byte `json:"attachment,omitempty"`
}

// attachment returns nil unless Trouble.Attachment is set.
func (s *service) attachment() []byte {
	if trouble := s.trouble.Load(); trouble != nil {
		return make([]byte, trouble.Attachment)
	}
	return nil
}

// checkout turns a cart into an order.
func checkout(s *service) (api, error) {
	place := func(ctx context.Context, req *orderRequest) (*order, error) {
		o, err := s.placeOrder(ctx, req)
		if err != nil {
			span := trace.SpanFromContext(ctx)
			span.RecordError(err)
			span.SetStatus(otelcodes.Error, err.Error())
		}
		return o, err
	}
	return api{methods: []grpc.MethodDesc{method(s, "PlaceOrder", place)}}, nil
}

func (s *service) placeOrder(ctx context.Context, req *orderRequest) (*order, error) {
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(attribute.String("app.user.id", req.UserID), attribute.String("app.order.currency", req.Currency))
	c, err := call[cart](ctx, s, cartService, "GetCart", cartOf{req.UserID})
	if err != nil {
		return nil, err
	}
	if len(c.Items) == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "the cart of %s is empty", req.UserID)
	}
	total, err := s.price(ctx, c, req.Currency)
	if err != nil {
		return nil, err
	}
	paid, err := call[receipt](ctx, s, paymentService, "Charge", charge{total, req.Card})
	if err != nil {
		return nil, err
	}
	span.AddEvent("charged", trace.WithAttributes(attribute.String("app.payment.transaction.id", paid.TransactionID)))
	shipped, err := call[tracking](ctx, s, shippingService, "ShipOrder", parcel{c.Items})
	if err != nil {
		return nil, err
	}
	span.AddEvent("shipped", trace.WithAttributes(attribute.String("app.shipping.tracking.id", shipped.ID)))
	if _, err := call[nothing](ctx, s, cartService, "EmptyCart", cartOf{req.UserID}); err != nil {
		return nil, err
	}
	o := &order{OrderID: s.dice.id("order"), TrackingID: shipped.ID, Items: c.Items, Total: total}
	span.SetAttributes(
		attribute.String("app.order.id", o.OrderID),
		attribute.Float64("app.order.amount", float64(total.Cents)/100),
		attribute.Int64("app.cart.items.count", c.count()),
	)
	letter := letter{order: *o, Attachment: s.attachment()}
	return o, s.fetch(ctx, emailService, http.MethodPost, "/send_order_confirmation", letter, nil)
}

// price returns the price of the items and their shipping in the customer's
// currency.
func (s *service) price(ctx context.Context, c *cart, currency string) (total money, err error) {
	ctx, span := s.tracer.Start(ctx, "price order", trace.WithAttributes(attribute.Int64("app.cart.items.count", c.count())))
	defer span.End()
	quote, err := call[money](ctx, s, shippingService, "GetQuote", parcel{c.Items})
	if err != nil {
		return money{}, err
	}
	total, err = s.convert(ctx, *quote, currency)
	if err != nil {
		return money{}, err
	}
	for _, it := range c.Items {
		p, err := call[product](ctx, s, productCatalogService, "GetProduct", productID{it.ProductID})
		if err != nil {
			return money{}, err
		}
		each, err := s.convert(ctx, p.Price, currency)
		if err != nil {
			return money{}, err
		}
		total.Cents += each.Cents * it.Quantity
	}
	return total, nil
}

// convert calls the currency service even if there is nothing to convert.
func (s *service) convert(ctx context.Context, m money, to string) (money, error) {
	converted, err := call[money](ctx, s, currencyService, "Convert", conversion{m, to})
	if err != nil {
		return money{}, err
	}
	return *converted, nil
}
