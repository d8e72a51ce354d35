"""tansu as the local broker, with what it lacks of Kafka's promises added around it.

tansu stores each batch of records as an object in S3. It gives concurrent batches their offsets before it stores them,
so a consumer could pass a batch that is not stored yet (proxy.py prevents that), and it never deletes a record
(retention.py does).
"""

BUCKET = "kafka"
"""Where tansu keeps everything."""
