package cli

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// screen is what standard error leads to. On a terminal it has a last line that is drawn in place: whatever else is
// written comes above it.
type screen struct {
	to io.Writer
	// width is how many columns there are now; nil unless it is a terminal.
	width func() int

	mutex sync.Mutex
	drawn bool
}

func newScreen(to io.Writer) *screen {
	s := &screen{to: to}
	if file, ok := to.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		s.width = func() int {
			width, _, err := term.GetSize(int(file.Fd()))
			if err != nil {
				return 80
			}
			return width
		}
	}
	return s
}

// Write takes whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.clear()
	return s.to.Write(p)
}

// draw shows the last line anew. So that the terminal does not wrap it, text is cut where there is no room for it and
// the end.
func (s *screen) draw(text, end string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.clear()
	runes := []rune(text)
	room := max(0, s.width()-1-len([]rune(end)))
	fmt.Fprint(s.to, string(runes[:min(len(runes), room)])+end)
	s.drawn = true
}

func (s *screen) erase() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.clear()
}

func (s *screen) clear() {
	if s.drawn {
		fmt.Fprint(s.to, "\r\x1b[K")
		s.drawn = false
	}
}
