"""People: what is known of each, and how a policy is made theirs."""
