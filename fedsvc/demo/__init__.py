"""`fedsvc demo`: real deliveries to local inboxes that check the signatures with somebody else's code."""
