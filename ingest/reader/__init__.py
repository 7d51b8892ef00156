"""The reader process: Kafka in, chords of flush tasks out, offsets committed behind them."""
