"""The node: receives radiographs over DIMSE, keeps them durably, and sends objects back.

It knows the wire and the spool, nothing of databases or models: it accepts images
while everything behind it is down.
"""
