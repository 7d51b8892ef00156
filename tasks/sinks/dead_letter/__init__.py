"""Dead letters in Kafka: the sink and its error classification."""
