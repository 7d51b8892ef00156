"""Dead letters in Kafka: the sink, and the classes of its errors."""
