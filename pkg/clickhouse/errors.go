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

// refusedValues is every code with which ClickHouse may refuse a block because
// of what its rows hold: the same rows are refused again, others in their place
// might not be. A caller finds the rows by bisecting.
//
// Some of these codes also come from a wrong table (a column whose type cannot
// take what is sent). A caller sees that by every row being refused alike, and
// must not divert them then.
//
// Every other code, known or not, is Retryable: what concerns the schema (16
// NO_SUCH_COLUMN_IN_TABLE, 53 TYPE_MISMATCH, 60 UNKNOWN_TABLE, 81
// UNKNOWN_DATABASE), access (192, 193, 497, 516), limits and load (159, 202,
// 241, 243, 252), replication (225, 242, 285, 286, 319, 999) passes when
// somebody mends it, and the rows are good.
var refusedValues = map[proto.Error]struct{}{
	proto.ErrCannotParseText:                  {}, // 6
	proto.ErrAttemptToReadAfterEOF:            {}, // 32, of an empty text that is to be a number
	proto.ErrIllegalTypeOfArgument:            {}, // 43, of an empty name of a time zone
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

// badReplica is every code that says that this node cannot work now while
// another of its shard may: the next attempt goes there.
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

// othersTrouble is every code that no other rows, and no fewer, would avoid.
var othersTrouble = map[proto.Error]struct{}{
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

// Answered reports whether err is ClickHouse's own answer: it is not busy with the insert any more.
func Answered(err error) bool {
	_, _, ok := exception(err)
	return ok
}

// Divisible reports whether ClickHouse refused a block with an error that a smaller block, or one
// of other rows, might not meet: also one that is not known to, like a limit of memory or a function
// that an operator's default calls.
func Divisible(err error) bool {
	code, _, ok := exception(err)
	_, others := othersTrouble[code]
	return ok && !others
}

// partitionsInBlock is how ClickHouse words the one refusal that shares its
// code with a passing one: 252 TOO_MANY_PARTS also says that one block holds
// more than max_partitions_per_insert_block partitions. Halves hold fewer.
const partitionsInBlock = "partitions for single INSERT block"

// exception returns the error that ClickHouse itself gave, through either driver.
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

// classOf says what the holder of a block should do about err.
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

// codeLabel is the name of err in metrics: ClickHouse's own, or that nothing
// came back.
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

// messageBytes bounds a message of ClickHouse in our errors: some repeat a whole value.
const messageBytes = 2000

// serverError gives ClickHouse's own errors the form "NAME (code): message", with at most
// messageBytes of the message, and leaves others as they are. It keeps err in the chain.
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
