package cli

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/berth-dev/berth/host/printable"
)

// screen is what standard error leads to: everything for it passes here. On a terminal it has a last line that is drawn in
// place: whatever else is written comes above it. Nobody waits for a screen: what a reader is too slow for is left out.
type screen struct {
	out *outlet
	// width is how many columns there are now; nil unless it is a terminal.
	width func() int

	mutex sync.Mutex
	drawn bool
}

// screenLimit is how many bytes may wait for a reader.
const screenLimit = 1 << 20

func newScreen(to io.Writer, leftOut func(lines int) string) *screen {
	s := &screen{out: newTextOutlet(to, screenLimit, leftOut)}
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

// Write takes whole lines, and shows what cannot be printed escaped.
func (s *screen) Write(p []byte) (int, error) {
	s.styled(printable.Text(string(p)))
	return len(p), nil
}

// styled writes whole lines that may hold control sequences of ours.
func (s *screen) styled(text string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	fmt.Fprint(s.out, s.clear()+text)
}

// draw shows the last line anew. So that the terminal does not wrap it, text is cut where there is no room for it and
// the end. When the terminal is slow, the line is left as it is.
func (s *screen) draw(text, end string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.out.behind() {
		return
	}
	runes := []rune(text)
	room := max(0, s.width()-1-len([]rune(end)))
	fmt.Fprint(s.out, s.clear()+string(runes[:min(len(runes), room)])+end)
	s.drawn = true
}

func (s *screen) erase() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	fmt.Fprint(s.out, s.clear())
}

// clear returns what removes the last line. The mutex is held.
func (s *screen) clear() string {
	if !s.drawn {
		return ""
	}
	s.drawn = false
	return "\r\x1b[K"
}
