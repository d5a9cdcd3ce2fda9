#pragma once
typedef struct dispatch_queue* dispatch_queue_t;
typedef struct dispatch_data* dispatch_data_t;
