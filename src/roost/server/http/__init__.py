"""REST and SSE: translate, call a service, translate back."""
