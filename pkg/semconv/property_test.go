package semconv_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
)

// storyKeys and storyValues are the parts of random spans, most of which no
// instrumentation would write.
var storyKeys, storyValues = func() (keys, values []string) {
	for _, story := range spanStories {
		for i := 0; i < len(story.attrs); i += 2 {
			keys, values = append(keys, story.attrs[i]), append(values, story.attrs[i+1])
		}
	}
	for _, story := range resourceStories {
		for i := 0; i < len(story.attrs); i += 2 {
			keys, values = append(keys, story.attrs[i]), append(values, story.attrs[i+1])
		}
	}
	slices.Sort(keys)
	slices.Sort(values)
	return slices.Compact(keys), slices.Compact(values)
}()

func drawPairs(t *rapid.T) pairs {
	value := rapid.OneOf(rapid.SampledFrom(storyValues), rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	attrs := rapid.MapOf(rapid.SampledFrom(storyKeys), value).Draw(t, "attributes")
	var p pairs
	for _, key := range storyKeys {
		if v, ok := attrs[key]; ok {
			p = append(p, key, v)
		}
	}
	return p
}

func drawKind(t *rapid.T) semconv.Kind {
	return semconv.Kind(rapid.Uint8Range(0, 7).Draw(t, "kind"))
}

func (p pairs) shuffled(seed uint64) pairs {
	out := slices.Clone(p)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(out)/2, func(i, j int) {
		out[2*i], out[2*i+1], out[2*j], out[2*j+1] = out[2*j], out[2*j+1], out[2*i], out[2*i+1]
	})
	return out
}

// The order of the attributes does not matter, and a reused Span gives the same results
// as a new one.
func TestSpanProperties(t *testing.T) {
	var used semconv.Span
	rapid.Check(t, func(t *rapid.T) {
		attrs, kind := drawPairs(t), drawKind(t)
		name := rapid.SampledFrom(storyValues).Draw(t, "name")
		story := spanStory{kind: kind, name: name, resource: attrs, attrs: attrs}

		var fresh semconv.Span
		want := story.resolve(&fresh)
		story.attrs = attrs.shuffled(rapid.Uint64().Draw(t, "order"))
		story.resource = story.attrs
		if diff := cmp.Diff(want, story.resolve(&used)); diff != "" {
			t.Fatalf("in another order, after other spans (-want +got):\n%s", diff)
		}
		used.Reset()
		used.Resolve(kind, nil, [16]byte{})
		if diff := cmp.Diff(spanView{}, viewOf(&used)); diff != "" {
			t.Fatalf("something outlived Reset (-want +got):\n%s", diff)
		}
	})
}

func TestResourceProperties(t *testing.T) {
	var used semconv.Resource
	rapid.Check(t, func(t *rapid.T) {
		attrs := drawPairs(t)
		var fresh semconv.Resource
		add(attrs, fresh.Add)
		fresh.Resolve()
		want := resourceViewOf(&fresh)

		used.Reset()
		if diff := cmp.Diff(resourceView{}, resourceViewOf(&used)); diff != "" {
			t.Fatalf("something outlived Reset (-want +got):\n%s", diff)
		}
		add(attrs.shuffled(rapid.Uint64().Draw(t, "order")), used.Add)
		used.Resolve()
		if diff := cmp.Diff(want, resourceViewOf(&used)); diff != "" {
			t.Fatalf("in another order, after other resources (-want +got):\n%s", diff)
		}
	})
}
