package spool_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// BenchmarkAppend appends from several goroutines; each append is on disk when
// it returns.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{2_000, 50_000, 343_000} {
		for _, adders := range []int{1, 16} {
			b.Run(fmt.Sprintf("bytes=%d/adders=%d", size, adders), func(b *testing.B) { benchmarkAppend(b, size, adders) })
		}
	}
}

func benchmarkAppend(b *testing.B, size, adders int) {
	reg := newRegistry()
	s, err := spool.Open(spool.Config{Dir: b.TempDir(), MaxBytes: 256 * mib}, spool.Options{Registerer: reg})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var taking, adding sync.WaitGroup
	taking.Go(func() { // keep room
		for {
			e, err := s.Next(ctx)
			if err != nil {
				return
			}
			_ = s.Done(e)
		}
	})
	e := entry(1, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	var n atomic.Int64
	for range adders {
		adding.Go(func() {
			for n.Add(1) <= int64(b.N) {
				if err := s.Append(ctx, e); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	adding.Wait()
	b.StopTimer()
	cancel()
	taking.Wait()
	families, err := reg.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "metaflow_spool_fsync_duration_seconds" {
			b.ReportMetric(float64(f.GetMetric()[0].GetHistogram().GetSampleCount())/float64(b.N), "fsyncs/op")
		}
	}
}

// BenchmarkNext reads entries back.
func BenchmarkNext(b *testing.B) {
	const size = 50_000
	s := open(b, b.TempDir(), 512*mib)
	e := entry(1, size)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if s.Len() == 0 {
			b.StopTimer()
			var adders sync.WaitGroup
			for range 16 {
				adders.Go(func() {
					for range 100 {
						if err := s.Append(context.Background(), e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			adders.Wait()
			b.StartTimer()
		}
		got, err := s.Next(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Done(got); err != nil {
			b.Fatal(err)
		}
	}
}
