package webstore

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"text/template"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// shopCurrency is the currency of the products' prices.
const shopCurrency = "USD"

// rates are the units of each currency per unit of shopCurrency.
var rates = map[string]float64{shopCurrency: 1, "EUR": 0.92, "GBP": 0.79, "JPY": 151.3, "CAD": 1.36, "CHF": 0.89}

type currencyList struct {
	Codes []string `json:"codes"`
}

type conversion struct {
	From money  `json:"from"`
	To   string `json:"to"`
}

// currencies converts money.
func currencies(s *service) (api, error) {
	var all currencyList
	for code := range rates {
		all.Codes = append(all.Codes, code)
	}
	slices.Sort(all.Codes)

	list := func(context.Context, *nothing) (*currencyList, error) { return &all, nil }
	convert := func(ctx context.Context, req *conversion) (*money, error) {
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("app.currency.conversion.from", req.From.Currency),
			attribute.String("app.currency.conversion.to", req.To),
		)
		from, to := rates[req.From.Currency], rates[req.To]
		if from == 0 || to == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "no rate from %q to %q", req.From.Currency, req.To)
		}
		return &money{req.To, int64(math.Round(float64(req.From.Cents) / from * to))}, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "GetSupportedCurrencies", list), method(s, "Convert", convert)}}, nil
}

type creditCard struct {
	Number string     `json:"number"`
	Year   int        `json:"year"`
	Month  time.Month `json:"month"`
}

type charge struct {
	Amount money      `json:"amount"`
	Card   creditCard `json:"card"`
}

type receipt struct {
	TransactionID string `json:"transaction_id"`
}

// payments charges cards with valid numbers that have not expired.
func payments(s *service) (api, error) {
	pay := func(ctx context.Context, req *charge) (*receipt, error) {
		span := trace.SpanFromContext(ctx)
		span.SetAttributes(
			attribute.Float64("app.order.amount", float64(req.Amount.Cents)/100),
			attribute.String("app.order.currency", req.Amount.Currency),
			attribute.Bool("app.payment.charged", false),
		)
		if err := req.Card.check(time.Now()); err != nil {
			span.RecordError(err)
			span.SetStatus(otelcodes.Error, err.Error())
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		span.SetAttributes(attribute.Bool("app.payment.charged", true))
		return &receipt{s.dice.id("tx")}, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "Charge", pay)}}, nil
}

func (c creditCard) check(now time.Time) error {
	if !luhn(c.Number) {
		return fmt.Errorf("card number is not valid")
	}
	if end := time.Date(c.Year, c.Month+1, 1, 0, 0, 0, 0, time.UTC); !now.Before(end) {
		return fmt.Errorf("card expired in %d-%02d", c.Year, c.Month)
	}
	return nil
}

// luhn checks the check digit of a card number.
func luhn(number string) bool {
	sum := 0
	for i := range len(number) {
		d := int(number[len(number)-1-i] - '0')
		if d > 9 { // a byte below '0' wraps around to a large number
			return false
		}
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return len(number) > 1 && sum%10 == 0
}

type parcel struct {
	Items []cartItem `json:"items"`
}

type tracking struct {
	ID string `json:"id"`
}

// shipping charges a flat price plus a little per item.
func shipping(s *service) (api, error) {
	quote := func(ctx context.Context, req *parcel) (*money, error) {
		n := (&cart{req.Items}).count()
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int64("app.shipping.items.count", n))
		return &money{shopCurrency, 499 + 150*n}, nil
	}
	ship := func(ctx context.Context, _ *parcel) (*tracking, error) {
		id := s.dice.id("ship")
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("app.shipping.tracking.id", id))
		return &tracking{id}, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "GetQuote", quote), method(s, "ShipOrder", ship)}}, nil
}

var confirmation = template.Must(template.New("confirmation").Parse(
	"Thank you for order {{.OrderID}} over {{.Total.Cents}} hundredths of {{.Total.Currency}}.\n{{range .Items}}{{.Quantity}} x {{.ProductID}}\n{{end}}"))

// emails renders confirmations and sends them nowhere.
func emails(*service) (api, error) {
	confirm := func(r *http.Request) (any, error) {
		var o letter
		if err := readBody(r, &o); err != nil {
			return nil, err
		}
		var text bytes.Buffer
		if err := confirmation.Execute(&text, o); err != nil {
			return nil, err
		}
		trace.SpanFromContext(r.Context()).SetAttributes(
			attribute.String("app.order.id", o.OrderID),
			attribute.Int("app.email.size", text.Len()),
		)
		return nothing{}, nil
	}
	return api{routes: routes{"POST /send_order_confirmation": confirm}}, nil
}
