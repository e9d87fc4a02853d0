package webstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

const (
	// Percentages of visitors who fill a cart, and who buy.
	shoppers, buyers = 80, 60
	// expiredCards is the percentage of cards that are refused.
	expiredCards = 3
	// thinking is the mean time between two pages, a thousandth of a person's.
	thinking = 4 * time.Millisecond
)

// visit is one visitor's journey through the shop: one trace.
type visit struct {
	s        *service
	rng      *rand.Rand
	user     string
	currency string
}

// newVisit draws a visitor; equal seeds and numbers give equal visitors.
func newVisit(s *service, seed, number uint64) *visit {
	rng := newRand(seed, number)
	return &visit{
		s:        s,
		rng:      rng,
		user:     fmt.Sprintf("user-%06x", rng.Uint32N(1<<24)),
		currency: [...]string{shopCurrency, "EUR", "EUR", "GBP", "JPY", "CAD", "CHF"}[rng.IntN(7)],
	}
}

// outcome is how a journey ended.
type outcome int

const (
	left     outcome = iota // bought nothing
	ordered                 // placed an order
	declined                // the card was refused
)

// run makes the journey. It returns an error if the visitor sees an unexpected
// one.
func (v *visit) run(ctx context.Context) (outcome, error) {
	ctx, span := v.s.tracer.Start(ctx, "user journey", trace.WithNewRoot(), trace.WithAttributes(
		attribute.String("app.user.id", v.user), attribute.String("app.currency", v.currency)))
	defer span.End()
	end, err := v.shop(ctx)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(otelcodes.Error, err.Error())
	}
	return end, err
}

func (v *visit) shop(ctx context.Context) (outcome, error) {
	if err := v.open(ctx, http.MethodGet, "/", nil); err != nil {
		return left, err
	}
	fate := v.rng.IntN(100)
	for range 1 + v.rng.IntN(2) {
		p := products[v.rng.IntN(len(products))]
		if err := v.open(ctx, http.MethodGet, "/product/"+p.ID, nil); err != nil {
			return left, err
		}
		if fate >= shoppers {
			continue
		}
		if err := v.open(ctx, http.MethodPost, "/cart", cartItem{p.ID, 1 + v.rng.Int64N(3)}); err != nil {
			return left, err
		}
	}
	if fate >= buyers {
		return left, nil
	}
	if err := v.open(ctx, http.MethodGet, "/cart", nil); err != nil {
		return left, err
	}
	err := v.open(ctx, http.MethodPost, "/cart/checkout", v.card())
	if refused(err) {
		return declined, nil
	}
	return ordered, err
}

// open requests a page, then pauses as if reading it.
func (v *visit) open(ctx context.Context, method, path string, body any) error {
	cookie := &http.Cookie{Name: userCookie, Value: v.user} //nolint:gosec // sent to a server on loopback
	if err := v.s.fetch(ctx, frontend, method, path+"?currency="+v.currency, body, nil, cookie); err != nil {
		return err
	}
	return pause(ctx, time.Duration(v.rng.ExpFloat64()*float64(thinking)))
}

// card returns one of the test numbers that card companies publish.
func (v *visit) card() creditCard {
	c := creditCard{Number: "4111111111111111", Year: 2099, Month: time.December}
	if v.rng.IntN(100) < expiredCards {
		c.Year, c.Month = 2021, time.Month(1+v.rng.IntN(12))
	}
	return c
}
