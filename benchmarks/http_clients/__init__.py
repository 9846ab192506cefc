"""HTTP clients that POST the same to the same inboxes, by HTTP/1.1 or by HTTP/2."""
