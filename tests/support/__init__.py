"""What tests of several rooms share: small slides, cheap runs, cohorts, schedulers."""
