module github.com/nodedrift/nodedrift

go 1.26.0
