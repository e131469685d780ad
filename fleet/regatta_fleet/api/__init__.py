"""The two HTTP faces of the server: the operator's (loopback, bearer token) and the devices' (HTTPS, to enrol)."""
