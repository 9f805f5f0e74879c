"""Many clips from one list of requests: read and checked before any work, made on all cores, GPUs or a cluster, each once.

lines, grid, wanted   a requests file, or a grid, as a list of `Wanted`
check                 everything that can be refused before work begins
jobs                  what a worker does: project a person, make a clip
results               the table of what became of each request
run                   all of it in a folder; killed and called again, it goes on
"""
