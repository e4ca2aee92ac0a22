"""What is asked of links: profiles, directions, schedules, who is where and when. Pure."""
