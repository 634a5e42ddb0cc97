package probes

// Noting returns a [Hearer] that notes that something moved or was lost before it
// passes that on, so that the look which follows knows of it.
func Noting(h Hearer, note func()) Hearer { return noting{h, note} }

type noting struct {
	Hearer
	note func()
}

// Changed implements [Hearer].
func (n noting) Changed() {
	n.note()
	n.Hearer.Changed()
}

// Lost implements [Hearer].
func (n noting) Lost(source string, lost uint64) {
	n.note()
	n.Hearer.Lost(source, lost)
}
