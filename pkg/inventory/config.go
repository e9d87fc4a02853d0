package inventory

import (
	"errors"
	"fmt"
	"time"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// ForgetAfter: how long ended pods and services are remembered, so that
	// late spans and flows find them; at least as long as
	// gateway.accept_past.
	ForgetAfter time.Duration `mapstructure:"forget_after" doc:"how long ended pods and services are remembered, so that late spans and flows find them; at least as long as gateway.accept_past"`
	// MaxObjects: maximum known pods and services, including ended ones, at
	// about a kilobyte each; new ones beyond it are refused.
	MaxObjects int `mapstructure:"max_objects" doc:"maximum known pods and services, including ended ones, at about a kilobyte each; new ones beyond it are refused"`
	// Group: consumer group that writes the tables pods, services and
	// agents.
	Group string `mapstructure:"group" doc:"consumer group that writes the tables pods, services and agents"`
}

// DefaultConfig returns a configuration that suits most installations.
func DefaultConfig() Config {
	return Config{ForgetAfter: 7 * 24 * time.Hour, MaxObjects: 200_000, Group: "metaflow-resources"}
}

// leastForgetting is the minimum that lets flows of a pod's last minutes find it.
const leastForgetting = time.Hour

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	if c.ForgetAfter < leastForgetting {
		errs = append(errs, fmt.Errorf("forget_after: %s is less than %s", c.ForgetAfter, leastForgetting))
	}
	if c.MaxObjects <= 0 {
		errs = append(errs, fmt.Errorf("max_objects: %d is not positive", c.MaxObjects))
	}
	if c.Group == "" {
		errs = append(errs, errors.New("group: must not be empty"))
	}
	return errors.Join(errs...)
}
