"""The clients of a chaos run, and the model server that answers them.

people.py         invented people, and texts with and without their data
answers.py        what the model server answers, which a request's seed decides
conversations.py  requests of every kind, and what the lake must say of each
apis.py           a request in the form of each API
upstream.py       the model server
asking.py         sends a request to a gateway and says how it ended
direct.py         sends events to Kafka, as an application without gateway does
clients.py        all clients together
"""
