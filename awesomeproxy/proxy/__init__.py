"""The data plane: bytes in, bytes out.

It knows gates and routes, and nothing of the registry, the control protocol or
the cluster.  :class:`awesomeproxy.proxy.plane.Plane` is the way in.
"""
