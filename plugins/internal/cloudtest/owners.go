package cloudtest

import (
	"slices"
	"testing"

	"github.com/berth-dev/berth/shared/provider"
)

// CheckOwners checks that a listing shows the sandboxes of its owner and, when it is asked for those of all owners, also
// another's, but never what is not berth's. plant puts a running sandbox with labels into the cloud.
func CheckOwners(t *testing.T, p provider.Lister, owner string, plant func(labels map[string]string) error) {
	t.Helper()
	const stranger = "somebody else"
	for _, labels := range []map[string]string{
		{provider.LabelOwner: owner, provider.LabelSession: "s1", provider.LabelAttempt: "a1"},
		{provider.LabelOwner: stranger, provider.LabelSession: "s1", provider.LabelAttempt: "a2"},
		{"made-by": "hand"},
	} {
		if err := plant(labels); err != nil {
			t.Fatal(err)
		}
	}
	for _, look := range []struct {
		request provider.ListRequest
		want    []string
	}{
		{provider.ListRequest{Owner: owner}, []string{owner}},
		{provider.ListRequest{Owner: owner, AllOwners: true}, []string{owner, stranger}},
		{provider.ListRequest{Owner: owner, AllOwners: true, Session: "s1"}, []string{owner, stranger}},
		{provider.ListRequest{Owner: owner, AllOwners: true, Session: "s2"}, nil},
	} {
		sandboxes, err := p.List(t.Context(), look.request)
		var owners []string
		for _, s := range sandboxes {
			owners = append(owners, s.Owner)
			if s.ID == "" || s.Session != "s1" || s.Attempt == "" || s.CreatedAt.IsZero() {
				t.Errorf("%+v", s)
			}
		}
		slices.Sort(owners)
		slices.Sort(look.want)
		if err != nil || !slices.Equal(owners, look.want) {
			t.Errorf("%+v shows those of %q, %v", look.request, owners, err)
		}
	}
}
