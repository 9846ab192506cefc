"""Other queues at the same work: each task signs and POSTs by `benchmarks/sending.py`. One file each,
configured for throughput as its documentation says, and durable: a task is acknowledged when it is done."""
