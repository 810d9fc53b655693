"""One prepared run for a GPU: its parts, each with floors, and what it runs on.

run goes through the parts: products has training steps and exact search, decoders has keys and
decoding, recipe has smollm2's memory. device is the device, its peak and the timing.
It may import what `train.bench` may. Open run.py first.
"""
