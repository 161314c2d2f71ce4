#ifndef NET_DONE
#define NET_DONE(call) /* what tests do behind each call */
#endif

