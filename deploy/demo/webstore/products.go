package webstore

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// money is an amount in hundredths of a currency.
type money struct {
	Currency string `json:"currency"`
	Cents    int64  `json:"cents"`
}

type product struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Category string `json:"category"`
	Price    money  `json:"price"`
}

// products is what the shop sells, priced in the shop's currency.
var products = []product{
	{"OLJCESPC7Z", "Sunglasses", "accessories", money{shopCurrency, 1999}},
	{"66VCHSJNUP", "Tank top", "clothing", money{shopCurrency, 1899}},
	{"1YMWWN1N4O", "Watch", "accessories", money{shopCurrency, 10999}},
	{"L9ECAV7KIM", "Loafers", "footwear", money{shopCurrency, 8999}},
	{"2ZYFJ3GM2N", "Hair dryer", "beauty", money{shopCurrency, 2499}},
	{"0PUK6V6EV0", "Candle holder", "home", money{shopCurrency, 1899}},
	{"LS4PSXUNUM", "Salt and pepper shakers", "kitchen", money{shopCurrency, 1849}},
	{"9SIQT8TOJO", "Bamboo glass jar", "kitchen", money{shopCurrency, 549}},
	{"6E92ZMYYFZ", "Mug", "kitchen", money{shopCurrency, 899}},
	{"HQTGWGPNH4", "Desk lamp", "home", money{shopCurrency, 4350}},
	{"A7KQ2M9XEB", "Rain jacket", "clothing", money{shopCurrency, 12900}},
	{"C4TNV8WRPD", "Trail running shoes", "footwear", money{shopCurrency, 14500}},
}

func findProduct(id string) (product, bool) {
	i := slices.IndexFunc(products, func(p product) bool { return p.ID == id })
	if i < 0 {
		return product{}, false
	}
	return products[i], true
}

// nothing is an empty request or response.
type nothing struct{}

type productID struct {
	ID string `json:"id"`
}

type productList struct {
	Products []product `json:"products"`
}

// productCatalog serves the products.
func productCatalog(s *service) (api, error) {
	list := func(ctx context.Context, _ *nothing) (*productList, error) {
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("app.products.count", len(products)))
		return &productList{products}, nil
	}
	get := func(ctx context.Context, req *productID) (*product, error) {
		span := trace.SpanFromContext(ctx)
		span.SetAttributes(attribute.String("app.product.id", req.ID))
		p, ok := findProduct(req.ID)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "no product has the id %q", req.ID)
		}
		span.SetAttributes(attribute.String("app.product.name", p.Name))
		return &p, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "ListProducts", list), method(s, "GetProduct", get)}}, nil
}

type recommendationRequest struct {
	UserID     string   `json:"user_id"`
	ProductIDs []string `json:"product_ids"`
}

type recommendationList struct {
	ProductIDs []string `json:"product_ids"`
}

// maxRecommendations is what fits beside a page.
const maxRecommendations = 4

// recommendations recommends products that the visitor does not have yet.
func recommendations(s *service) (api, error) {
	list := func(ctx context.Context, req *recommendationRequest) (*recommendationList, error) {
		all, err := call[productList](ctx, s, productCatalogService, "ListProducts", nothing{})
		if err != nil {
			return nil, err
		}
		var out recommendationList
		for _, p := range all.Products {
			if len(out.ProductIDs) < maxRecommendations && !slices.Contains(req.ProductIDs, p.ID) {
				out.ProductIDs = append(out.ProductIDs, p.ID)
			}
		}
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("app.user.id", req.UserID),
			attribute.Int("app.products_recommended.count", len(out.ProductIDs)),
		)
		return &out, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "ListRecommendations", list)}}, nil
}

type adRequest struct {
	Category string `json:"category"`
}

type ad struct {
	Text      string `json:"text"`
	ProductID string `json:"product_id"`
}

// ads advertises a product of the category, or any product.
func ads(s *service) (api, error) {
	get := func(ctx context.Context, req *adRequest) (*ad, error) {
		fitting := slices.DeleteFunc(slices.Clone(products), func(p product) bool { return p.Category != req.Category })
		targeting := "targeted"
		if len(fitting) == 0 {
			fitting, targeting = products, "random"
		}
		p := fitting[s.dice.intn(len(fitting))]
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("app.ads.category", req.Category),
			attribute.String("app.ads.ad_request_type", targeting),
			attribute.String("app.product.id", p.ID),
		)
		return &ad{Text: p.Name + ", today only", ProductID: p.ID}, nil
	}
	return api{methods: []grpc.MethodDesc{method(s, "GetAds", get)}}, nil
}
