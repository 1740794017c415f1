"""The journal: jobs, their stories, ledgers and steps, durable before anything is acknowledged or started."""
