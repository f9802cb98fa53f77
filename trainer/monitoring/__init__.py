"""What a run says about itself: log, metrics, trackers, goodput, stragglers, profiles."""
