// Package chromium runs the headless Chromium that is installed, for tests and benchmarks of
// the page.
package chromium

import (
	"context"
	"errors"
	"os/exec"
	"time"

	"github.com/chromedp/chromedp"
)

// ErrMissing says that no Chromium is on the PATH.
var ErrMissing = errors.New("no Chromium: install Debian's chromium-headless-shell")

// Start starts a browser with an empty page. Actions of chromedp run in the context, which ends
// after limit; stop, which may be called once, waits for the browser to end. The error is
// ErrMissing, before anything is started.
func Start(limit time.Duration) (page context.Context, stop func() error, err error) {
	program := ""
	for _, name := range []string{"chromium-headless-shell", "chromium"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		return nil, nil, ErrMissing
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(time.Minute))
	allocated, stopAllocator := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, stopContext := chromedp.NewContext(allocated)
	page, cancel := context.WithTimeout(ctx, limit)
	return page, func() error {
		defer stopAllocator()
		defer stopContext()
		defer cancel()
		return chromedp.Cancel(page)
	}, nil
}

// FirstPaint returns how long the page that is shown took to paint its first content
// (https://www.w3.org/TR/paint-timing/).
func FirstPaint(page context.Context) (time.Duration, error) {
	var ms float64
	err := chromedp.Run(page, chromedp.Evaluate(`performance.getEntriesByName("first-contentful-paint")[0].startTime`, &ms))
	return time.Duration(ms * float64(time.Millisecond)), err
}
