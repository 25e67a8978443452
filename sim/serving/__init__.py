"""From steps to requests: engines that batch as real ones do, and what their users see."""
