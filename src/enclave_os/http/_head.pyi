# C interface only: see _head.pxd.
