// Docker's own devicemapper driver, served by the protocol of graph-driver plugins, so that it can be measured without
// the daemon: devicemapper-plugin SOCKET
//
// Built by bench.rig.moby_driver against Debian's sources of Docker 20.10; it runs as root where device mapper is.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/daemon/graphdriver/devmapper"
	"github.com/docker/docker/pkg/idtools"
	"github.com/docker/docker/pkg/reexec"
)

type request struct {
	Home       string
	Opts       []string
	UIDMaps    []idtools.IDMap
	GIDMaps    []idtools.IDMap
	ID         string
	Parent     string
	MountLabel string
}

type answer map[string]interface{}

// One request at a time is all that the benchmark sends.
type plugin struct {
	driver graphdriver.Driver
}

func (p *plugin) ServeHTTP(response http.ResponseWriter, incoming *http.Request) {
	method := strings.TrimPrefix(incoming.URL.Path, "/GraphDriver.")
	found, err := p.call(method, incoming)
	if err != nil {
		found = answer{"Err": err.Error()}
	}
	json.NewEncoder(response).Encode(found)
}

func (p *plugin) call(method string, incoming *http.Request) (answer, error) {
	if method == "ApplyDiff" {
		query := incoming.URL.Query()
		size, err := p.driver.ApplyDiff(query.Get("id"), query.Get("parent"), incoming.Body)
		return answer{"Size": size}, err
	}
	var r request
	if err := json.NewDecoder(incoming.Body).Decode(&r); err != nil && err != io.EOF {
		return nil, err
	}
	switch method {
	case "Init":
		driver, err := devmapper.Init(r.Home, r.Opts, r.UIDMaps, r.GIDMaps)
		p.driver = driver
		return answer{}, err
	case "Create":
		return answer{}, p.driver.Create(r.ID, r.Parent, nil)
	case "CreateReadWrite":
		return answer{}, p.driver.CreateReadWrite(r.ID, r.Parent, nil)
	case "Remove":
		return answer{}, p.driver.Remove(r.ID)
	case "Get":
		root, err := p.driver.Get(r.ID, r.MountLabel)
		if err != nil {
			return nil, err
		}
		return answer{"Dir": root.Path()}, nil
	case "Put":
		return answer{}, p.driver.Put(r.ID)
	case "Changes":
		changes, err := p.driver.Changes(r.ID, r.Parent)
		return answer{"Changes": changes}, err
	case "DiffSize":
		size, err := p.driver.DiffSize(r.ID, r.Parent)
		return answer{"Size": size}, err
	case "Cleanup":
		return answer{}, p.driver.Cleanup()
	}
	return nil, errors.New("no such request: " + method)
}

func main() {
	if reexec.Init() { // the driver unpacks archives in a process of its own
		return
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = http.Serve(listener, &plugin{})
	}
	panic(err)
}
