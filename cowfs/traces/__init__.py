"""Traces: the requests that a device got, in order, as they are recorded, kept in files, and replayed.

requests     what a request is, and what a trace says about itself
file         cowfs's own format
iolog        fio's format, versions 2 and 3
blktrace     the kernel's format, as blktrace and blkparse have it
formats      any of them, by what is in a file
tracer       a trace while it is recorded, and the device that records it
summary      a trace in figures
replay       the requests of a trace, sent to another device
"""
