package deadletter

// ReadMark returns the letters of a mark.
func ReadMark(value []byte) (letters []Position) {
	readMark(value, func(at Position) { letters = append(letters, at) })
	return letters
}
