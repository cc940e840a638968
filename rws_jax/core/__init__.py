"""What everything else stands on: messages, traces, supports, trees, and what NumPyro keeps private."""
