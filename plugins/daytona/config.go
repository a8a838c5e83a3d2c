package main

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
)

// Config is what the provider's config block may hold.
type Config struct {
	APIKey         string        `berth:"api_key,sensitive" env:"DAYTONA_API_KEY" doc:"The key of an organization, with the permissions write:sandboxes and delete:sandboxes. It or jwt_token is needed."`
	JWTToken       string        `berth:"jwt_token,sensitive" env:"DAYTONA_JWT_TOKEN" doc:"A user's token, instead of api_key. It needs organization_id."`
	OrganizationID string        `berth:"organization_id" env:"DAYTONA_ORGANIZATION_ID" doc:"Which of the user's organizations jwt_token acts for. An api_key belongs to one, so it needs none."`
	APIURL         string        `berth:"api_url" default:"https://app.daytona.io/api" env:"DAYTONA_API_URL,DAYTONA_SERVER_URL" doc:"Where the API is, with the /api at its end. Plain http is for this machine only, because the key goes with every call."`
	Target         string        `berth:"target" env:"DAYTONA_TARGET" doc:"The region. Default: the organization's own."`
	Snapshot       string        `berth:"snapshot" doc:"The snapshot that sandboxes are made of, as it is called in Daytona's dashboard; not an image of a registry. Default: the organization's default snapshot. An account's first sandbox of a large one can take many minutes."`
	Image          string        `berth:"image" doc:"An image of a registry, instead of snapshot: the cloud builds a snapshot of it first, which takes minutes the first time."`
	CPU            int           `berth:"cpu" doc:"Cores. Only with image, as are memory and disk: a snapshot has its own size. Default: the cloud's."`
	Memory         int           `berth:"memory" doc:"GiB of memory. Only with image. Default: the cloud's, which is small."`
	Disk           int           `berth:"disk" doc:"GiB of disk. Only with image. Default: the cloud's."`
	Port           int           `berth:"port" default:"8000" doc:"The port of a server that asks for none."`
	Public         bool          `berth:"public" default:"false" doc:"Let everybody who knows a URL reach every port of the sandbox, without the token that private sandboxes ask for. It cannot be changed for a sandbox that exists."`
	DeleteAfter    time.Duration `berth:"delete_after" default:"168h" doc:"How long after its last activity a stopped sandbox is kept, in whole minutes and less than 720h: then the cloud deletes it with its files. It deletes none that it has archived or that failed. 0s keeps it until somebody deletes it."`
	ArchiveAfter   time.Duration `berth:"archive_after" doc:"How long after its last activity a stopped sandbox stays quick to wake, in whole minutes and 720h at most: then its files move to cheaper storage, and waking takes minutes. It must be later than delete_after, or that be 0s. Default: 720h with delete_after, otherwise the cloud's, 7 days."`
	BlockNetwork   bool          `berth:"block_network" default:"false" doc:"Let nothing in the sandbox reach out."`
	AllowNetworks  []string      `berth:"allow_networks" doc:"The networks the sandbox may reach, such as 208.80.154.232/32; no others. Default: all."`
}

// open checks the configuration. It asks the cloud nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*Daytona, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	return newDaytona(config, log, normalTimes), nil
}

// check refuses what the cloud would refuse, and what would not mean what it says.
func (c *Config) check() error {
	var refused cloud.Refusals
	switch {
	case c.APIKey == "" && c.JWTToken == "":
		refused.Add("api_key", "is missing: set it, or the environment variable DAYTONA_API_KEY; the dashboard makes keys")
	case c.APIKey != "" && c.JWTToken != "":
		refused.Add("jwt_token", "goes without an api_key: choose one of them")
	case c.JWTToken != "" && c.OrganizationID == "":
		refused.Add("organization_id", "is needed with jwt_token: set it, or the environment variable DAYTONA_ORGANIZATION_ID")
	}
	refused.Credential("api_key", c.APIKey)
	refused.Credential("jwt_token", c.JWTToken)
	c.APIURL = refused.URL("api_url", c.APIURL, "https://app.daytona.io/api")
	if c.Snapshot != "" && c.Image != "" {
		refused.Add("image", "goes without a snapshot: choose one of them")
	}
	if strings.ContainsAny(c.Image, " \t\r\n") {
		refused.Add("image", "must be one image, such as docker.io/library/python:3.13")
	}
	for name, size := range map[string]int{"cpu": c.CPU, "memory": c.Memory, "disk": c.Disk} {
		switch {
		case size < 0 || size > 1<<16:
			refused.Add(name, "must be a whole number from 1 on")
		case size > 0 && c.Image == "":
			refused.Add(name, "goes with image only: a snapshot has its own size")
		}
	}
	switch archive := cmp.Or(c.ArchiveAfter, longestStop); {
	case c.ArchiveAfter > longestStop:
		refused.Add("archive_after", "must be 720h at most: the cloud archives what is stopped for 30 days")
	case c.DeleteAfter > 0 && minutes(c.DeleteAfter) >= minutes(archive) && c.ArchiveAfter > 0:
		refused.Add("archive_after", "must be later than delete_after, which is %s: the cloud never deletes what it has archived; set delete_after to less, or to 0s", c.DeleteAfter)
	case c.DeleteAfter > 0 && minutes(c.DeleteAfter) >= minutes(archive):
		refused.Add("delete_after", "must be less than 720h, or 0s: after 30 days the cloud archives what is stopped, and never deletes it then")
	}
	refused.Port("port", c.Port)
	refused.Networks("allow_networks", c.AllowNetworks)
	if c.BlockNetwork && len(c.AllowNetworks) > 0 {
		refused.Add("allow_networks", "goes without block_network: choose one of them")
	}
	return refused.Err()
}

// longestStop is how long the cloud leaves a sandbox stopped before it archives it, whatever it is asked for.
const longestStop = 30 * 24 * time.Hour

func (c *Config) token() string { return cmp.Or(c.JWTToken, c.APIKey) }

// minutes rounds up: the cloud counts in whole minutes, and takes 0 for something else.
func minutes(d time.Duration) int32 {
	whole := d / time.Minute
	if d%time.Minute > 0 {
		whole++
	}
	return int32(max(1, whole))
}
