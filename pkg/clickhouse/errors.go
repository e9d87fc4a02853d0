package clickhouse

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// refusedValues are the error codes with which ClickHouse may refuse a block because of
// the values in its rows: the same rows would be refused again, other rows might not. The
// caller finds the bad rows by bisecting.
//
// Some of these codes also result from a wrong table, for example a column whose type
// cannot hold the values. Then every row is refused alike, and the caller must not divert
// the rows.
//
// Every other code, known or not, is Retryable. Errors of the schema (16
// NO_SUCH_COLUMN_IN_TABLE, 53 TYPE_MISMATCH, 60 UNKNOWN_TABLE, 81 UNKNOWN_DATABASE), of
// access (192, 193, 497, 516), of limits and load (159, 202, 241, 243, 252) and of
// replication (225, 242, 285, 286, 319, 999) end when an operator fixes their cause, and
// the rows are good.
var refusedValues = map[proto.Error]struct{}{
	proto.ErrCannotParseText:                  {}, // 6
	proto.ErrAttemptToReadAfterEOF:            {}, // 32, when an empty text is parsed as a number
	proto.ErrIllegalTypeOfArgument:            {}, // 43, for an empty time zone name
	proto.ErrCannotCompileRegexp:              {}, // 427
	proto.ErrSizeOfFixedStringDoesntMatch:     {}, // 19
	proto.ErrCannotParseEscapeSequence:        {}, // 25
	proto.ErrCannotParseQuotedString:          {}, // 26
	proto.ErrCannotParseInputAssertionFailed:  {}, // 27
	proto.ErrCannotParseDate:                  {}, // 38
	proto.ErrCannotParseDatetime:              {}, // 41
	proto.ErrArgumentOutOfBound:               {}, // 69
	proto.ErrCannotConvertType:                {}, // 70
	proto.ErrCannotParseNumber:                {}, // 72
	proto.ErrIncorrectData:                    {}, // 117
	proto.ErrTooLargeArraySize:                {}, // 128
	proto.ErrCannotReadArrayFromText:          {}, // 130
	proto.ErrTooLargeStringSize:               {}, // 131
	proto.ErrIllegalDivision:                  {}, // 153
	proto.ErrSizesOfArraysDontMatch:           {}, // 190
	proto.ErrInvalidPartitionValue:            {}, // 248
	proto.ErrValueIsOutOfRangeOfDataType:      {}, // 321
	proto.ErrCannotInsertNullInOrdinaryColumn: {}, // 349
	proto.ErrCannotParseUUID:                  {}, // 376
	proto.ErrFunctionThrowIfValueIsNonZero:    {}, // 395
	proto.ErrDecimalOverflow:                  {}, // 407
	proto.ErrCannotParseDomainValueFromString: {}, // 441
	proto.ErrCannotParseBool:                  {}, // 467
	proto.ErrViolatedConstraint:               {}, // 469
	proto.ErrUnexpectedDataAfterParsedValue:   {}, // 632
	proto.ErrCannotParseIpv4:                  {}, // 675
	proto.ErrCannotParseIpv6:                  {}, // 676
	proto.ErrUnknownElementOfEnum:             {}, // 691
}

// badReplica are the error codes of a node that currently cannot work while another
// replica of its shard may. The next attempt goes to that replica.
var badReplica = map[proto.Error]struct{}{
	proto.ErrNoZookeeper:                {}, // 225
	proto.ErrAborted:                    {}, // 236, shutting down
	proto.ErrTableIsReadOnly:            {}, // 242
	proto.ErrNotEnoughSpace:             {}, // 243
	proto.ErrMemoryLimitExceeded:        {}, // 241
	proto.ErrTooManySimultaneousQueries: {}, // 202
	proto.ErrTableIsBeingRestarted:      {}, // 733
	proto.ErrServerOverloaded:           {}, // 745
	proto.ErrKeeperException:            {}, // 999
}

// indivisible are the error codes that neither fewer nor other rows would avoid.
var indivisible = map[proto.Error]struct{}{
	proto.ErrUnknownTable:               {}, // 60
	proto.ErrUnknownDatabase:            {}, // 81
	proto.ErrNoSuchColumnInTable:        {}, // 16
	proto.ErrReadonly:                   {}, // 164
	proto.ErrUnknownUser:                {}, // 192
	proto.ErrWrongPassword:              {}, // 193
	proto.ErrTooManyParts:               {}, // 252
	proto.ErrUnknownStatusOfInsert:      {}, // 319
	proto.ErrAccessDenied:               {}, // 497
	proto.ErrAuthenticationFailed:       {}, // 516
	proto.ErrNoZookeeper:                {}, // 225
	proto.ErrAborted:                    {}, // 236
	proto.ErrTableIsReadOnly:            {}, // 242
	proto.ErrNotEnoughSpace:             {}, // 243
	proto.ErrTooManySimultaneousQueries: {}, // 202
	proto.ErrTableIsBeingRestarted:      {}, // 733
	proto.ErrServerOverloaded:           {}, // 745
	proto.ErrKeeperException:            {}, // 999
}

// Answered reports whether err is ClickHouse's own response: ClickHouse is done with the
// insert.
func Answered(err error) bool {
	_, _, ok := exception(err)
	return ok
}

// Divisible reports whether ClickHouse refused a block with an error that a smaller
// block, or one of other rows, might avoid. That includes unknown causes, such as a
// memory limit or a function in an operator's DEFAULT expression.
func Divisible(err error) bool {
	code, _, ok := exception(err)
	_, whole := indivisible[code]
	return ok && !whole
}

// partitionsInBlock identifies the one data error that shares its code with a temporary
// one: 252 TOO_MANY_PARTS also means that a block has more than
// max_partitions_per_insert_block partitions. Halves of the block have fewer.
const partitionsInBlock = "partitions for single INSERT block"

// exception returns the error that ClickHouse reported, from either driver.
func exception(err error) (code proto.Error, message string, ok bool) {
	if e, ok := ch.AsException(err); ok {
		return e.Code, strings.TrimSpace(strings.TrimPrefix(e.Message, e.Name+":")), true
	}
	var e *driver.Exception
	if errors.As(err, &e) {
		return proto.Error(e.Code), e.Message, true
	}
	return 0, "", false
}

// classOf returns the fault class of err.
func classOf(err error) fault.Class {
	code, message, ok := exception(err)
	if !ok {
		return fault.Retryable
	}
	if _, refused := refusedValues[code]; refused {
		return fault.Rejected
	}
	if code == proto.ErrTooManyParts && strings.Contains(message, partitionsInBlock) {
		return fault.Rejected
	}
	return fault.Retryable
}

// codeLabel returns the metric label of err: ClickHouse's error name, or CONNECTION
// without a response.
func codeLabel(err error) string {
	code, _, ok := exception(err)
	switch {
	case !ok:
		return "CONNECTION"
	case code.IsAError():
		return code.String()
	default:
		return fmt.Sprintf("CODE_%d", int(code))
	}
}

// messageBytes bounds ClickHouse's messages in errors: some repeat a whole value.
const messageBytes = 2000

// serverError formats ClickHouse's errors as "NAME (code): message", with at most
// messageBytes of the message. Unwrap returns the original error.
type serverError struct {
	text  string
	cause error
}

func (e *serverError) Error() string { return e.text }
func (e *serverError) Unwrap() error { return e.cause }

func readable(err error) error {
	code, message, ok := exception(err)
	if !ok {
		return err
	}
	return &serverError{text: code.Error() + ": " + fault.Shorten(message, messageBytes), cause: err}
}
