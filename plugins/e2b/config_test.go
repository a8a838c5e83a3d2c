package main

import (
	"testing"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/shared/provider"
)

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	cloudtest.CheckAttributes(t, "e2b", provider.Attributes[Config]())
}
