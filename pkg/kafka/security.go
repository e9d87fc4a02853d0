package kafka

import (
	"fmt"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// mechanism returns nil when s does not log in.
func (s SASL) mechanism() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "":
		return nil, nil //nolint:nilnil // the library takes nil for "no login"
	case mechanismPlain:
		return plain.Mechanism{Username: s.Username, Password: s.Password}, nil
	case mechanismScram256, mechanismScram512:
		algorithm := scram.SHA256
		if s.Mechanism == mechanismScram512 {
			algorithm = scram.SHA512
		}
		m, err := scram.Mechanism(algorithm, s.Username, s.Password)
		if err != nil {
			return nil, fmt.Errorf("prepare sasl.username and sasl.password for %s: %w", s.Mechanism, err)
		}
		return m, nil
	default:
		return nil, fmt.Errorf("sasl.mechanism: %q is unknown", s.Mechanism)
	}
}
