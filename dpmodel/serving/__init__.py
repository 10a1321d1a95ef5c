"""A server that answers queries over HTTP and charges one budget for all clients; needs the extra ``serve``."""
