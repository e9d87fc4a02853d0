package webstore

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// cartLife is how long the cache keeps an idle cart.
const cartLife = time.Hour

type cartItem struct {
	ProductID string `json:"product_id"`
	Quantity  int64  `json:"quantity"`
}

type cartOf struct {
	UserID string `json:"user_id"`
}

type cart struct {
	Items []cartItem `json:"items"`
}

// count returns the number of items, not of products.
func (c *cart) count() (n int64) {
	for _, it := range c.Items {
		n += it.Quantity
	}
	return n
}

type addToCart struct {
	UserID string   `json:"user_id"`
	Item   cartItem `json:"item"`
}

// carts stores each cart as a hash in the cache: quantities by product.
func carts(s *service) (api, error) {
	db, err := s.newCacheClient()
	if err != nil {
		return api{}, err
	}
	add := func(ctx context.Context, req *addToCart) (*nothing, error) {
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("app.user.id", req.UserID),
			attribute.String("app.product.id", req.Item.ProductID),
			attribute.Int64("app.product.quantity", req.Item.Quantity),
		)
		_, err := db.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.HIncrBy(ctx, cartKey(req.UserID), req.Item.ProductID, req.Item.Quantity)
			p.Expire(ctx, cartKey(req.UserID), cartLife)
			return nil
		})
		return &nothing{}, cacheError(err)
	}
	get := func(ctx context.Context, req *cartOf) (*cart, error) {
		fields, err := db.HGetAll(ctx, cartKey(req.UserID)).Result()
		if err != nil {
			return nil, cacheError(err)
		}
		c, err := parseCart(fields)
		if err != nil {
			return nil, cacheError(err)
		}
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("app.user.id", req.UserID),
			attribute.Int64("app.cart.items.count", c.count()),
		)
		return c, nil
	}
	empty := func(ctx context.Context, req *cartOf) (*nothing, error) {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("app.user.id", req.UserID))
		return &nothing{}, cacheError(db.Del(ctx, cartKey(req.UserID)).Err())
	}
	return api{
		methods: []grpc.MethodDesc{method(s, "AddItem", add), method(s, "GetCart", get), method(s, "EmptyCart", empty)},
		cleanup: []func() error{db.Close},
	}, nil
}

func cartKey(user string) string { return "cart:" + user }

func cacheError(err error) error {
	if err == nil {
		return nil
	}
	return status.Errorf(codes.Unavailable, "query cache: %v", err)
}

func parseCart(fields map[string]string) (*cart, error) {
	c := &cart{}
	for id, text := range fields {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read quantity of %s: %w", id, err)
		}
		c.Items = append(c.Items, cartItem{id, n})
	}
	slices.SortFunc(c.Items, func(a, b cartItem) int { return strings.Compare(a.ProductID, b.ProductID) })
	return c, nil
}

// newCacheClient returns a Redis client that does not trace connection setup
// (dial, HELLO), because no visitor caused it.
func (s *service) newCacheClient() (*redis.Client, error) {
	address := s.sites[cache]
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("read address of the cache: %w", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("read port of the cache: %w", err)
	}
	options := &redis.Options{
		Addr:                     address,
		Dialer:                   s.dialer().DialContext,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if s.idleLimit > 0 {
		options.MaxIdleConns = -1 // the pool checks the age of connections only when it hands them out
	}
	db := redis.NewClient(options)
	err = redisotel.InstrumentTracing(db,
		redisotel.WithTracerProvider(s.telemetry.provider),
		redisotel.WithCallerEnabled(false), // would record file names of the build machine
		redisotel.WithDialFilter(true),
		redisotel.WithCommandFilter(func(cmd redis.Cmder) bool {
			return cmd.Name() == "hello" || redisotel.DefaultCommandFilter(cmd)
		}),
		redisotel.WithAttributes(semconv.NetworkPeerAddress(host), semconv.NetworkPeerPort(number)),
	)
	if err != nil {
		return nil, fmt.Errorf("instrument cache client: %w", err)
	}
	return db, nil
}
