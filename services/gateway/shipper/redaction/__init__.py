"""Removes personal data from the events of the spool, before they reach Kafka.

    records      batches of records: read, redacted, made to fit
    texts        the queue of all texts before the one redactor, with a cache
    event_texts  which texts an event has
    allowed      the strings that are not redacted
    binary       base64, which is left out
    fitting      the size and the version of an event

It fails closed: what `allowed` does not name is redacted, and an event that cannot be redacted is a dead letter.
"""

from services.gateway.shipper.redaction.records import RecordRedactor as RecordRedactor
from services.gateway.shipper.redaction.records import RefusedRecord as RefusedRecord
