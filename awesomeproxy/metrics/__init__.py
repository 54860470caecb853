"""The metrics page: what there is to count and to measure, for Prometheus to collect.

Nothing is formatted before somebody asks.  The counters are plain integers that the data
plane counts anyway; :mod:`.families` reads them when the page is asked for, and
:mod:`.page` answers with what it found, a slice at a time: traffic goes on in between.
"""
